"""Do the laws of training hold on this run?"""
