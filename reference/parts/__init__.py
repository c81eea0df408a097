"""What layers are made of: linear maps, activations, normalizations, rotations. Nothing here knows a type of layers."""
