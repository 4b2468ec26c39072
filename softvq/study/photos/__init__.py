"""Looking at the photos before anything is trained."""
