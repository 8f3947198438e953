"""Bundles: load, check, write, edit, swap and watch; and the one that ships."""
