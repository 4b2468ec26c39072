"""From what was measured to a recommendation: nothing is rebuilt or trained here."""
