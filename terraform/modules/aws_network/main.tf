# Public subnets, one a zone: nodes fetch packages and are reached over SSH, and a NAT gateway costs more than it adds.
# All zones get their subnet at once, so that a gang can move to another zone without a change of the network.
data "aws_region" "current" {}

data "aws_internet_gateway" "given" {
  count = var.vpc_id == "" ? 0 : 1

  filter {
    name   = "attachment.vpc-id"
    values = [var.vpc_id]
  }
}

locals {
  vpc_id     = var.vpc_id == "" ? aws_vpc.own[0].id : var.vpc_id
  gateway_id = var.vpc_id == "" ? aws_internet_gateway.own[0].id : data.aws_internet_gateway.given[0].id
  letters    = split("", "abcdefghijklmnop")
}

resource "aws_vpc" "own" {
  #checkov:skip=CKV2_AWS_11:flow logs cost more than a cluster of a day is worth; the firewall admits SSH from named ranges only
  count = var.vpc_id == "" ? 1 : 0

  cidr_block = var.vpc_cidr # DNS names for hosts stay off: nothing uses them, and setting them takes the provider 10 s
  tags       = merge(var.tags, { Name = var.name })
}

# The VPC's own default group admits all traffic between its members; nobody is to use it.
resource "aws_default_security_group" "own" {
  count = var.vpc_id == "" ? 1 : 0

  vpc_id = aws_vpc.own[0].id
  tags   = merge(var.tags, { Name = "${var.name}-unused" })
}

resource "aws_internet_gateway" "own" {
  count = var.vpc_id == "" ? 1 : 0

  vpc_id = aws_vpc.own[0].id
  tags   = merge(var.tags, { Name = var.name })
}

resource "aws_subnet" "zone" {
  for_each = toset(var.zones)

  vpc_id                  = local.vpc_id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(var.vpc_cidr, 4, index(local.letters, substr(each.key, -1, 1)))
  map_public_ip_on_launch = false # nodes ask for theirs; nothing else that lands here gets one
  tags                    = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_route_table" "public" {
  vpc_id = local.vpc_id
  tags   = merge(var.tags, { Name = var.name })

  # Within the table, not beside it: what a killed apply left of it goes as one, and nothing has to be made twice.
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = local.gateway_id
  }
}

resource "aws_route_table_association" "zone" {
  for_each = aws_subnet.zone

  subnet_id      = each.value.id
  route_table_id = aws_route_table.public.id
}

# Checkpoints go to S3 inside Amazon's network: free, and without the internet gateway's limits.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = local.vpc_id
  service_name      = "com.amazonaws.${data.aws_region.current.name}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.public.id]
  tags              = merge(var.tags, { Name = "${var.name}-s3" })
}
