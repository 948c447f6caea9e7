"""The command line `patchsae`: its commands, their options, and what they print."""
