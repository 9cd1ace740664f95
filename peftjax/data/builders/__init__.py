"""The packaged data sets as TFDS builders, one folder each, prepared once into the cache as array_record files."""
