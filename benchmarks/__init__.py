"""Measurements and checks that anyone can repeat from a source tree."""
