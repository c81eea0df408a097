"""What layers are made of: linear maps, activations, normalizations, rotations."""
