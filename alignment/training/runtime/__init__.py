"""The edge to torch.distributed and accelerate: processes, how weights lie over them, one update."""
