"""Rewards that check what a prompt asks for."""
