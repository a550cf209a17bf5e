"""Where pictures come from: files, folders, a folder that is watched, a camera."""
