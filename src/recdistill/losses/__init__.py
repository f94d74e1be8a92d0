"""Functions of tensors that two or more methods learn by."""
