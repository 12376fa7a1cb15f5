"""Read and change the Hugging Face cache on disk; only this package knows its layout."""
