"""Read and judge the files of a model in any folder, without network and without MLX."""
