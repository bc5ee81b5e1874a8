/** To be imported before all else: while the rest of the program is loaded, another CPU starts a thread for the disk. */

import { startThreadAhead } from "./threads.ts";

if (process.argv[2] === "serve") startThreadAhead();
