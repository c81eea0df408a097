"""One file for each kind of directory that a checkpoint may be: Hugging Face, or a trainer's, of any layout."""
