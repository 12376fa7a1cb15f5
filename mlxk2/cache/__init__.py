"""The Hugging Face cache on disk: the only rooms that know its layout."""
