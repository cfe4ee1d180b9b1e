/* Prints where an option stands: places FILE BLOCK KEY OCCURRENCE.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "place.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    Sought sought = {.plugin = "capture"};
    char place[4096];

    if (argc != 5) {
        return 2;
    }
    sought.block = strtoul(argv[2], NULL, 10);
    sought.key = argv[3];
    sought.occurrence = strtoul(argv[4], NULL, 10);
    if (!place_find(place, sizeof(place), argv[1], false, &sought)) {
        return 1;
    }
    puts(place);
    return 0;
}
