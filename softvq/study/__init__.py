"""How far can tokens be cut on my photos before what matters is lost?"""
