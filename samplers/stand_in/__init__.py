"""The scheduler stand-in: it runs any diffusers pipeline, round by round."""
