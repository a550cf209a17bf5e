"""What maintainers run: nothing here is installed or imported by the rooms."""
