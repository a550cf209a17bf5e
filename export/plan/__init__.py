"""What a build will take, told before it starts: memory, disk and minutes. Never imports torch."""
