"""The hub on the network: the only room that imports huggingface_hub."""
