"""The commands of the device runtime, one file each; heavy imports wait until a command runs."""
