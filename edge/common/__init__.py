"""What every part of the device runtime uses: atomic files, provenance, extras."""
