"""What each kernel must compute, written plainly: what tests hold the kernels to, and what other devices run."""
