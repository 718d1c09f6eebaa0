"""Fast, lean training of spiking neural networks on PyTorch."""
