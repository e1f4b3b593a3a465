"""From files to networks and from media to their inputs."""
