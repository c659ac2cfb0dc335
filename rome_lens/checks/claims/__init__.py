"""The claims about what an edit does not do, one file each."""
