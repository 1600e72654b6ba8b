"""SpiderMultusConfigs become NetworkAttachmentDefinitions, and those stay as they should be."""
