"""What a study's pictures are drawn with."""
