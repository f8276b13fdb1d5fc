class JobsProgress:
    def __init__(self, n): pass
