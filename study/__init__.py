"""The study: baseline, deep supervision and DKS over several seeds."""
