/** A worker of the page. */

import { readDisk } from "./read-disk.ts";

postMessage(await readDisk());
