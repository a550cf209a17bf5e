"""The bundle as a folder of listed, hashed files: its manifest, how it is opened and what is checked."""
