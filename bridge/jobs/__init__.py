"""The life of a job, from a request to verified files and placed tracks.

``separate``
    a clip to stem files in a folder
``render``
    a clip of a session to stem tracks in that session or in a copy of it
"""
