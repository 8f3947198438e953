"""What demuxer, decoder and checksums say about damage, in the capture process and for image files."""
