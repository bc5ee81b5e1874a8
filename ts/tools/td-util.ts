import { runSuite } from "./cli/suite.ts";
import { tdUtil } from "./td-util/suite.ts";

void runSuite(tdUtil);
