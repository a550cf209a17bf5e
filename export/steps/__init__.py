"""The steps of a build, the large ones in processes of their own, and how long each took."""
