"""Rewards that ask a vision-language model."""
