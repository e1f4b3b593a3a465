"""Rewards that measure pixels; no network looks."""
