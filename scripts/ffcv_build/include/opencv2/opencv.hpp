// Stands in for the umbrella header of libopencv-dev: the two modules FFCV uses.
#pragma once
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
