"""Many seeds and settings of a small network in one program: trained, tabled, written."""
