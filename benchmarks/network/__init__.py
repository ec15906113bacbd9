"""The same training by mics-elastic and by its peers, over emulated nodes with shaped links."""
