"""VBench's dimensions, scored in an environment of their own."""
