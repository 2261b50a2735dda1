"""Classification: networks that name a whole image, trained from MedMNIST-style files (Yang 2023)."""
