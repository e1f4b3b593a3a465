"""Cheap samples that say which samples are worth making: they are ranked, and only the chosen are made exactly."""
