"""Networks compiled by torch, whole or block by block, and what that took."""
