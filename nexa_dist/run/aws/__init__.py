"""The AWS API through boto3: what is there, by tag, and its end."""
