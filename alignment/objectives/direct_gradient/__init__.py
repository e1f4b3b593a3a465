"""Objectives whose gradient passes through the reward."""
