"""Rewards by a picture tower and a text tower."""
