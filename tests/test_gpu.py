"""What a GPU does, as far as it can be seen without one: nothing waits for it between two records of
a training, and triton's kernel ends where the CPU's does. The rest needs a GPU."""
